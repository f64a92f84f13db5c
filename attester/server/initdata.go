package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"

	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/initdata"
	"github.com/sealpod/sealpod/podvm"
)

// BindInitData ties init data to the evidence at start: the document at
// tomlPath, or else the digest, which is padded standard base64; both may be
// "". It returns the document for the KBS, nil if there is none. A TEE that has
// nothing to bind to is logged and no error, as upstream.
func BindInitData(ctx context.Context, tees *attester.Set, digest, tomlPath string, log *slog.Logger) (*initdata.Document, error) {
	if digest == "" && tomlPath == "" {
		return nil, nil
	}
	var doc *initdata.Document
	var sum []byte
	if tomlPath != "" {
		raw, err := podvm.ReadFileMax(tomlPath, initdata.MaxBytes)
		if err != nil {
			return nil, fmt.Errorf("reading init data: %w", err)
		}
		if doc, err = initdata.Parse(raw); err != nil {
			return nil, fmt.Errorf("reading init data from %s: %w", tomlPath, err)
		}
		sum = doc.Digest()
	} else {
		var err error
		if sum, err = base64.StdEncoding.Strict().DecodeString(digest); err != nil {
			return nil, errors.New("reading the init data digest: not padded standard base64")
		}
	}
	switch err := tees.BindInitData(ctx, sum); {
	case errors.Is(err, attester.ErrUnsupported):
		log.Warn("Init data is not part of the evidence of this TEE", "tee", tees.TEE())
	case err != nil:
		return nil, err
	default:
		log.Info("Init data is bound", "tee", tees.TEE(), "digest", fmt.Sprintf("%x", sum))
	}
	return doc, nil
}

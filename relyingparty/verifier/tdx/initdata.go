package tdx

import (
	"bytes"
	"encoding/hex"
	"errors"

	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/relyingparty/verifier/ccel"
)

// The values of the claim init_data_binding.
const (
	bindingMRConfigID = "mrconfigid"
	bindingRTMR3      = "rtmr3"
)

// rtmr3 is the number of RTMR3 in event logs.
const rtmr3 = 4

// initDataBinding says where the quote has the digest of the init data. log was
// matched with the quote, and is nil when the guest sent none.
func (q *Quote) initDataBinding(digest []byte, log *ccel.Log) (string, error) {
	launched := q.MRConfigID()
	if bytes.Equal(padded(digest, len(launched)), launched) {
		return bindingMRConfigID, nil
	}
	if !bytes.Equal(launched, make([]byte, len(launched))) {
		return "", errors.New("MRCONFIGID is not the digest of the init data sent along: the guest was started with other init data")
	}
	if log == nil {
		return "", errors.New("MRCONFIGID is zero and there is no event log: nothing binds the guest to the init data sent along")
	}
	if e, ok := log.First(ccel.SHA384, rtmr3); !ok || !e.IsAgent(eventlog.Domain, eventlog.BindInitDataOperation, hex.EncodeToString(digest)) {
		return "", errors.New("MRCONFIGID is zero and the first event of RTMR3 is not that of the init data sent along: " +
			"the guest was started with other init data, or its agent bound none")
	}
	return bindingRTMR3, nil
}

package vtpm

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealpod/sealpod/podvm"
)

// maxNV caps the content of an NV index, in bytes.
const maxNV = 16 << 10

// ErrNoIndex says that the TPM has no such NV index.
var ErrNoIndex = errors.New("no such NV index")

// nvIndex is an NV index as the TPM describes it.
type nvIndex struct {
	index uint32
	name  tpm2.TPM2BName
	size  int
}

// owner authorizes with the owner's password, which is empty.
func owner() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
}

func (i nvIndex) handle() tpm2.NamedHandle {
	return tpm2.NamedHandle{Handle: tpm2.TPMHandle(i.index), Name: i.name}
}

// ReadNV returns the content of an NV index, at most 16 KiB. Errors:
// ErrNoIndex, ErrAnswer, podvm.ErrTooLarge.
func (c *Conn) ReadNV(index uint32) ([]byte, error) { return c.ReadNVFrom(index, 0) }

// ReadNVFrom returns the content of an NV index without its first offset bytes,
// which are not read. Errors: as ReadNV.
func (c *Conn) ReadNVFrom(index uint32, offset int) ([]byte, error) {
	i, err := c.describe(index)
	var out []byte
	if err == nil {
		out, err = c.readNV(i, offset)
	}
	if err != nil {
		return nil, fmt.Errorf("reading NV index %#x: %w", index, err)
	}
	return out, nil
}

// WriteNV makes data the content of an NV index, which is defined if it is not
// there, and defined anew if its size is another. Nothing is written when the
// content is data already.
func (c *Conn) WriteNV(index uint32, data []byte) error {
	if err := c.writeNV(index, data); err != nil {
		return fmt.Errorf("writing NV index %#x: %w", index, err)
	}
	return nil
}

func (c *Conn) writeNV(index uint32, data []byte) error {
	if len(data) > maxNV {
		return fmt.Errorf("%w: %d bytes", podvm.ErrTooLarge, len(data))
	}
	i, err := c.describe(index)
	switch {
	case errors.Is(err, ErrNoIndex):
		i, err = c.define(index, len(data))
	case err != nil:
		return err
	case i.size != len(data):
		if _, err := (tpm2.NVUndefineSpace{AuthHandle: owner(), NVIndex: i.handle()}).Execute(c); err != nil {
			return fmt.Errorf("removing it: %w", err)
		}
		i, err = c.define(index, len(data))
	default:
		// One that was never written cannot be read; that is no error.
		if now, err := c.readNV(i, 0); err == nil && bytes.Equal(now, data) {
			return nil
		}
	}
	if err != nil {
		return err
	}
	chunk := c.nvBuffer()
	for at := 0; at < len(data); at += chunk {
		part := data[at:min(at+chunk, len(data))]
		_, err := tpm2.NVWrite{
			AuthHandle: owner(), NVIndex: i.handle(), Data: tpm2.TPM2BMaxNVBuffer{Buffer: part}, Offset: uint16(at),
		}.Execute(c)
		if err != nil {
			return err
		}
	}
	return nil
}

// describe asks the TPM about an index. Errors: ErrNoIndex, ErrAnswer,
// podvm.ErrTooLarge.
func (c *Conn) describe(index uint32) (nvIndex, error) {
	out, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(c)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nvIndex{}, fmt.Errorf("%w: %w", ErrNoIndex, err)
	}
	if err != nil {
		return nvIndex{}, err
	}
	area, err := out.NVPublic.Contents()
	if err != nil {
		return nvIndex{}, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	if area.NVIndex != tpm2.TPMHandle(index) {
		return nvIndex{}, fmt.Errorf("%w: about index %#x", ErrAnswer, uint32(area.NVIndex))
	}
	if area.DataSize > maxNV {
		return nvIndex{}, fmt.Errorf("%w: %d bytes", podvm.ErrTooLarge, area.DataSize)
	}
	return nvIndex{index: index, name: out.NVName, size: int(area.DataSize)}, nil
}

// define makes an index that the owner reads and writes.
// Source: az-cvm-vtpm 0.8.1 src/vtpm, create_index.
func (c *Conn) define(index uint32, size int) (nvIndex, error) {
	_, err := tpm2.NVDefineSpace{
		AuthHandle: owner(),
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex:    tpm2.TPMHandle(index),
			NameAlg:    tpm2.TPMAlgSHA256,
			Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true},
			DataSize:   uint16(size),
		}),
	}.Execute(c)
	if err != nil {
		return nvIndex{}, fmt.Errorf("defining it: %w", err)
	}
	return c.describe(index)
}

func (c *Conn) readNV(i nvIndex, from int) ([]byte, error) {
	out, chunk := make([]byte, 0, i.size), c.nvBuffer()
	for at := from; at < i.size; at = from + len(out) {
		n := min(chunk, i.size-at)
		part, err := tpm2.NVRead{
			AuthHandle: owner(), NVIndex: i.handle(), Size: uint16(n), Offset: uint16(at),
		}.Execute(c)
		if err != nil {
			return nil, err
		}
		if len(part.Data.Buffer) != n {
			return nil, fmt.Errorf("%w: %d bytes, want %d", ErrAnswer, len(part.Data.Buffer), n)
		}
		out = append(out, part.Data.Buffer...)
	}
	return out, nil
}

// Bytes of an NV index moved by one command: what every TPM takes, and the most
// that fits an answer here.
const minNVBuffer, maxNVBuffer = 64, 2048

// nvBuffer returns how many bytes one command moves.
func (c *Conn) nvBuffer() int {
	if c.nvChunk != 0 {
		return c.nvChunk
	}
	c.nvChunk = minNVBuffer
	out, err := tpm2.GetCapability{
		Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTNVBufferMax), PropertyCount: 1,
	}.Execute(c)
	if err != nil {
		return c.nvChunk
	}
	list, err := out.CapabilityData.Data.TPMProperties()
	if err == nil && len(list.TPMProperty) == 1 && list.TPMProperty[0].Property == tpm2.TPMPTNVBufferMax {
		c.nvChunk = int(min(max(list.TPMProperty[0].Value, minNVBuffer), maxNVBuffer))
	}
	return c.nvChunk
}

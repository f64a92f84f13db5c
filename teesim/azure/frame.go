package azure

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpm2"
)

// Lengths of a command or a response in bytes.
// Source: TPM 2.0 part 1 §18; libtpms 0.9 TPM2_PT_MAX_COMMAND_SIZE.
const (
	headerSize   = 10
	maxFrameSize = 4096
)

// errFrame says that bytes are not the start of a TPM 2.0 command or response.
var errFrame = errors.New("not a TPM 2.0 frame")

// readFrame reads one command or response, whose code is at bytes 6 to 9. started
// is called when its first byte is there. The tag is checked before anything
// else: swtpm knows more of them, and with one a client would choose its
// locality. Errors: errFrame, io.EOF before the first byte, or what r says.
func readFrame(r io.Reader, started func()) ([]byte, error) {
	frame := make([]byte, headerSize, 256)
	if _, err := io.ReadFull(r, frame[:1]); err != nil {
		return nil, err
	}
	started()
	if _, err := io.ReadFull(r, frame[1:]); err != nil {
		return nil, fmt.Errorf("reading a header: %w", noEOF(err))
	}
	if tag := tpm2.TPMST(binary.BigEndian.Uint16(frame)); tag != tpm2.TPMSTNoSessions && tag != tpm2.TPMSTSessions {
		return nil, fmt.Errorf("%w: tag %#04x", errFrame, uint16(tag))
	}
	size := binary.BigEndian.Uint32(frame[2:])
	if size < headerSize || size > maxFrameSize {
		return nil, fmt.Errorf("%w: a size of %d bytes", errFrame, size)
	}
	frame = append(frame, make([]byte, size-headerSize)...)
	if _, err := io.ReadFull(r, frame[headerSize:]); err != nil {
		return nil, fmt.Errorf("reading the rest of a frame: %w", noEOF(err))
	}
	return frame, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// codeOf returns the command code of a command, the response code of a response.
func codeOf(frame []byte) uint32 { return binary.BigEndian.Uint32(frame[6:]) }

// handleAt returns the integer at an offset, false where the frame is shorter.
func handleAt(frame []byte, offset int) (tpm2.TPMHandle, bool) {
	if len(frame) < offset+4 {
		return 0, false
	}
	return tpm2.TPMHandle(binary.BigEndian.Uint32(frame[offset:])), true
}

// refusal is a response without parameters.
func refusal(rc tpm2.TPMRC) []byte {
	out := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
	out = binary.BigEndian.AppendUint32(out, headerSize)
	return binary.BigEndian.AppendUint32(out, uint32(rc))
}

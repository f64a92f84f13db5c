package intercept

import "google.golang.org/protobuf/encoding/protowire"

// maxItems caps the mounts, storages, namespaces and annotations, or the DNS lines,
// of a request together. An empty one takes two bytes on the wire and a hundred in
// memory, so a request of 4 MiB could take all of it; real ones have some dozens.
const maxItems = 4096

// fields are the tags of a message whose occurrences are counted, nil, and of the
// messages in it that are looked into.
type fields map[protowire.Number]fields

var (
	containerItems = fields{
		5: nil, // CreateContainerRequest.storages
		6: { // CreateContainerRequest.OCI
			5: nil,      // Spec.Mounts
			7: nil,      // Spec.Annotations
			8: {6: nil}, // Spec.Linux, Linux.Namespaces
		},
	}
	sandboxItems = fields{2: nil} // CreateSandboxRequest.dns
)

// count returns how many items the message p has; every part of p is read once.
// What cannot be read is an error.
func (f fields) count(p []byte) (n int, err error) {
	for len(p) > 0 {
		number, wire, size := protowire.ConsumeTag(p)
		if size < 0 {
			return 0, protowire.ParseError(size)
		}
		p = p[size:]
		if size = protowire.ConsumeFieldValue(number, wire, p); size < 0 {
			return 0, protowire.ParseError(size)
		}
		value := p[:size]
		p = p[size:]
		inner, ok := f[number]
		if !ok || wire != protowire.BytesType {
			continue
		}
		if inner == nil {
			n++
			continue
		}
		body, _ := protowire.ConsumeBytes(value)
		m, err := inner.count(body)
		if err != nil {
			return 0, err
		}
		n += m
	}
	return n, nil
}

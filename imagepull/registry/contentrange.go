package registry

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// parseContentRange reads "bytes first-last/total" with plain decimal numbers,
// first ≤ last < total; a total of * is returned as -1.
// Source: RFC 9110 section 14.4.
func parseContentRange(s string) (first, last, total int64, err error) {
	malformed := fmt.Errorf("malformed Content-Range %q", podvm.Printable(s, 64))
	rest, ok := strings.CutPrefix(s, "bytes ")
	span, size, ok2 := strings.Cut(rest, "/")
	from, to, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, malformed
	}
	numbers := [3]int64{0, 0, -1}
	for i, text := range []string{from, to, size} {
		if i == 2 && text == "*" {
			break
		}
		n, e := strconv.ParseUint(text, 10, 63)
		if e != nil {
			return 0, 0, 0, malformed
		}
		numbers[i] = int64(n)
	}
	first, last, total = numbers[0], numbers[1], numbers[2]
	if first > last || total >= 0 && last >= total {
		return 0, 0, 0, malformed
	}
	return first, last, total, nil
}

package imagepull

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/store"
	"github.com/sealpod/sealpod/podvm"
)

// space is what a pull needs of the file system of the work directory, in bytes.
type space struct {
	dir     string
	free    int64 // when the pull began
	atLeast int64 // the layers to be fetched, as they are in the registry
	about   int64 // the same unpacked, guessed
}

// checkSpace refuses an image that cannot fit before anything of it is fetched.
// Unpacked, a layer is practically never smaller than packed. How much larger
// it is nobody says, so the guess decides nothing: a model's weights hardly
// shrink when packed, and refusing what would have fitted helps nobody.
func (p *pulling) checkSpace(layers pullLayers) error {
	s := space{dir: p.deps.Config.WorkDir}
	var err error
	if s.free, err = p.store.Free(); err != nil {
		return fmt.Errorf("asking for the space in %s: %w", s.dir, err)
	}
	seen := map[store.ID]bool{}
	for _, l := range layers {
		// What another pull is fetching already takes space, or will, but once.
		if seen[l.id] || p.store.Begun(l.id) {
			continue
		}
		seen[l.id] = true
		ratio := 1.0
		if strings.Contains(l.spec.MediaType, "gzip") || strings.Contains(l.spec.MediaType, "zstd") {
			ratio = 2.5 // of Debian and its like; the median of what people publish is near it
		}
		s.atLeast = add(s.atLeast, float64(l.spec.Size))
		s.about = add(s.about, float64(l.spec.Size)*ratio)
	}
	p.space = s
	if s.atLeast > s.free {
		return podvm.Explain(fmt.Errorf("%d bytes of layers, %d bytes free: %w", s.atLeast, s.free, unix.ENOSPC), "no space for the image: "+s.String())
	}
	if s.about > s.free {
		p.log.Warn("The image may not fit", "needs_about", s.about, "free", s.free, "dir", s.dir)
	}
	return nil
}

// add is n plus more, or as much as fits.
func add(n int64, more float64) int64 {
	if sum := float64(n) + more; sum < math.MaxInt64 {
		return int64(sum)
	}
	return math.MaxInt64
}

// String says what is needed and what there was, for users.
func (s space) String() string {
	if s.about > s.free {
		return fmt.Sprintf("the image needs about %s, %s has %s free", podvm.SizeText(s.about), s.dir, podvm.SizeText(s.free))
	}
	// More space than guessed, or more files than the file system has.
	return fmt.Sprintf("%s had %s free when the pull began", s.dir, podvm.SizeText(s.free))
}

// explain adds the numbers to an error for lack of space.
func (s space) explain(err error) error {
	if s.dir == "" || (!errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT)) {
		return err
	}
	cause := podvm.Cause(err)
	switch {
	case strings.Contains(cause, s.dir):
		return err
	case cause == "":
		cause = "no space left"
	}
	return podvm.Explain(err, cause+": "+s.String())
}

//go:build unix

package fault

import "golang.org/x/sys/unix"

// now is a clock that all processes share, and that nobody sets.
func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

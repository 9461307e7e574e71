package redisserver

import (
	"errors"
	"os"
)

// Pause and Resume are for Unix: Windows has no such signals.
func Pause(*os.Process) error  { return errors.ErrUnsupported }
func Resume(*os.Process) error { return errors.ErrUnsupported }

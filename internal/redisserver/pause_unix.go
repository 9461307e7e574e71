//go:build !windows

package redisserver

import (
	"os"
	"syscall"
)

// Pause stops a process in the midst of what it does; Resume lets it go on.
func Pause(p *os.Process) error  { return p.Signal(syscall.SIGSTOP) }
func Resume(p *os.Process) error { return p.Signal(syscall.SIGCONT) }

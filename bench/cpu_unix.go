//go:build !windows

package main

import (
	"syscall"
	"time"
)

// ownCPU is the time that this process has computed so far.
func ownCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

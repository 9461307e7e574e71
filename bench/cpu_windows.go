package main

import (
	"syscall"
	"time"
)

// ownCPU is the time that this process has computed so far.
func ownCPU() time.Duration {
	var created, exited, kernel, user syscall.Filetime
	self, _ := syscall.GetCurrentProcess()
	_ = syscall.GetProcessTimes(self, &created, &exited, &kernel, &user)
	ticks := func(t syscall.Filetime) time.Duration {
		return time.Duration(int64(t.HighDateTime)<<32|int64(t.LowDateTime)) * 100
	} // of 100 ns
	return ticks(kernel) + ticks(user)
}

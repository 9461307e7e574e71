//go:build !unix

package fault

// now is for Unix, as the processes that are stopped here are.
func now() int64 { panic("this proof needs Unix") }

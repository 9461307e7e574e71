// Package clock lets redistoretest decide what time a store has.
package clock

import "time"

// Set has a *redistore.Store take the time from now. The package redistore provides it.
var Set func(store any, now func() time.Time)

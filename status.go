package redistore

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/gorilla/securecookie"
)

// Status is what a handler answers to an error of this package:
//
//   - 200 to nil, and to a cookie that proves nothing: Get has made a new session, which can
//     be used as it is. What a Codec of yours refuses counts as such a cookie
//   - 401 to [ErrGone]: the session has ended, so log in again
//   - 409 to [ErrConflict]: load the session again and repeat, which is what Update is for
//   - 503 to [ErrNotLoaded], [ErrLocked], and whatever else is about Redis or the connection
//     to it, as a wrong password: try again later
//   - 500 to all else, for which somebody has to change the program or its configuration, such
//     as [ErrTooLarge], or a value that cannot be encoded; an error of Update's fn too, unless it
//     is one of the above: a securecookie.Error of fn is 200, although nothing was saved
//
// So that is all that most handlers need after Get, and after Save:
//
//	if status := redistore.Status(err); status != http.StatusOK {
//		http.Error(w, "please try again", status)
//		return
//	}
func Status(err error) int {
	var cookie securecookie.Error
	var redis *stepError
	switch {
	case err == nil:
		return http.StatusOK
	case errors.Is(err, ErrGone):
		return http.StatusUnauthorized
	case errors.Is(err, ErrConflict):
		return http.StatusConflict
	case errors.Is(err, ErrNotLoaded), errors.Is(err, ErrLocked), errors.As(err, &redis):
		return http.StatusServiceUnavailable
	case errors.As(err, &cookie) && cookie.IsDecode():
		return http.StatusOK
	}
	return http.StatusInternalServerError
}

// A stepError is Redis', or its connection's.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return fmt.Sprintf("redistore: %s: %v", e.step, e.err) }
func (e *stepError) Unwrap() error { return e.err }

// failed says which step an error of Redis belongs to. The package's own need no such words.
func failed(step string, err error) error {
	if err == nil || errors.Is(err, ErrGone) || errors.Is(err, ErrConflict) || errors.Is(err, ErrLocked) {
		return err
	}
	return &stepError{step, err}
}

package e2e

import (
	"testing"

	"github.com/gorilla/sessions"
	qor "github.com/qor/session/gorilla"
	qortest "github.com/qor/session/test"

	"github.com/redistore/redistore"
)

// TestQor runs the tests of qor/session's manager for gorilla. It loads with the request
// that its middleware was given, and saves with a copy of it.
func TestQor(t *testing.T) {
	stores(t, func(t *testing.T, store sessions.Store, plain *redistore.Store) {
		plain.Options.Secure = false // they serve plain HTTP
		qortest.TestAll(qor.New("_session", store), t)
	})
}

package redistore

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"sync"

	"github.com/gorilla/sessions"
)

// Encrypt returns a Serializer that keeps what inner makes secret from whoever can
// read Redis: AES-256-GCM, with the record's key (KeyPrefix and session ID) as associated
// data, so that a value copied under another key does not decrypt, not even under another
// KeyPrefix. Only the Store knows the KeyPrefix: an application that calls Serialize itself
// binds the session ID alone. A Serializer that wraps this one has to hand it the session
// that it was given itself: for another, what is bound to the key does not decrypt.
//
// Values that were bound to the ID alone, as builds before 0.1.0 did, are still read; 0.2.0
// will not read them.
//
// Keys are 32 random bytes each. The first encrypts, all decrypt: to rotate them
// without downtime, first add the new key as the last one everywhere, then move it
// to the front, and drop the old one after MaxAge. A session that lives on by Touch, or
// with MaxAge 0 by IdleTimeout, keeps the old key until its next Save or Renew: where there
// are such, drop it after AbsoluteTimeout. Rotate before 2^32 Saves (NIST SP 800-38D, section
// 8.3). Keys that cannot be used are reported by every Get, Save and Ping.
//
// A value that does not decrypt is [ErrNotLoaded]: it was tampered with or copied, or
// its key is gone, or it is plain, from before. To let plain values in, as long as
// there are some, write a Serializer whose Deserialize falls back to inner; it gives
// up the protection against values planted in Redis.
func Encrypt(inner Serializer, keys ...[]byte) Serializer {
	e := &encrypted{inner: inner}
	switch {
	case inner == nil:
		e.err = errors.New("redistore: Encrypt: the inner Serializer is nil")
	case len(keys) == 0:
		e.err = errors.New("redistore: Encrypt: no keys: pass at least one of 32 bytes")
	}
	if inner, ok := inner.(*encrypted); ok && e.err == nil {
		e.err = inner.err
	}
	for i, key := range keys {
		if len(key) != 32 {
			e.err = fmt.Errorf("redistore: Encrypt: key %d has %d bytes: use 32", i+1, len(key))
			return e
		}
		block, _ := aes.NewCipher(key)                 // fails for other lengths only
		aead, _ := cipher.NewGCMWithRandomNonce(block) // fails for other ciphers only
		e.aeads = append(e.aeads, aead)
	}
	return e
}

// encrypted makes a version byte, and then what the AEAD makes: nonce, ciphertext
// and tag.
type encrypted struct {
	inner Serializer
	aeads []cipher.AEAD
	err   error // what is wrong with the configuration
}

// A sealer is a Serializer that binds what it makes to the record's key in Redis.
type sealer interface {
	seal(key string, session *sessions.Session) ([]byte, error)
	open(key string, data []byte, session *sessions.Session) error
}

// The versions say what the associated data are.
const (
	boundToID  = 1 // the session ID
	boundToKey = 2 // the version, and the record's key
)

func (e *encrypted) check() error { return e.err }

func (e *encrypted) Serialize(session *sessions.Session) ([]byte, error) {
	if key := keyOf(session); key != "" {
		return e.seal(key, session)
	}
	plain, err := e.plain("", session)
	if err != nil {
		return nil, err
	}
	return e.aeads[0].Seal([]byte{boundToID}, nil, plain, []byte(session.ID)), nil
}

func (e *encrypted) seal(key string, session *sessions.Session) ([]byte, error) {
	plain, err := e.plain(key, session)
	if err != nil {
		return nil, err
	}
	return e.aeads[0].Seal([]byte{boundToKey}, nil, plain, keyData(key)), nil
}

// keyData begins with the version: a session ID, which the older version binds, cannot
// stand for a key.
func keyData(key string) []byte { return append([]byte{boundToKey}, key...) }

// plain is what inner makes. An inner Encrypt binds the key too, if there is one.
func (e *encrypted) plain(key string, session *sessions.Session) ([]byte, error) {
	if e.err != nil {
		return nil, e.err
	}
	if key == "" {
		return e.inner.Serialize(session)
	}
	return serialize(e.inner, key, session)
}

func (e *encrypted) Deserialize(data []byte, session *sessions.Session) error {
	return e.open(keyOf(session), data, session)
}

func (e *encrypted) open(key string, data []byte, session *sessions.Session) error {
	if e.err != nil {
		return e.err
	}
	var bound []byte
	switch {
	case len(data) > 0 && data[0] == boundToID:
		bound = []byte(session.ID)
	case len(data) > 0 && data[0] == boundToKey && key != "":
		bound = keyData(key)
	case len(data) > 0 && data[0] == boundToKey:
		return errors.New("Encrypt: the value is bound to its key in Redis: only the Store can decrypt it")
	default:
		return errors.New("Encrypt: the value was not encrypted by this version, or not at all")
	}
	for _, aead := range e.aeads {
		if plain, err := aead.Open(nil, nil, data[1:], bound); err == nil {
			if key == "" {
				return e.inner.Deserialize(plain, session)
			}
			return deserialize(e.inner, key, plain, session)
		}
	}
	return fmt.Errorf("Encrypt: none of %d keys decrypts the value: it was changed, or copied from another session or KeyPrefix, or its key is missing", len(e.aeads))
}

func (s *Store) serialize(session *sessions.Session) ([]byte, error) {
	if binds(s.Serializer) {
		return serialize(s.Serializer, s.key(session.ID), session)
	}
	return s.Serializer.Serialize(session)
}

func (s *Store) deserialize(data []byte, session *sessions.Session) error {
	if binds(s.Serializer) {
		return deserialize(s.Serializer, s.key(session.ID), data, session)
	}
	return s.Serializer.Deserialize(data, session)
}

// binds tells whether a Serializer may make use of the record's key.
func binds(z Serializer) bool {
	switch z.(type) {
	case GobSerializer, JSONSerializer:
		return false
	}
	return true
}

// serialize encodes a session that is stored under this key.
func serialize(z Serializer, key string, session *sessions.Session) ([]byte, error) {
	if z, ok := z.(sealer); ok {
		return z.seal(key, session)
	}
	if !binds(z) {
		return z.Serialize(session)
	}
	twin := *session
	keys.Store(&twin, key)
	defer keys.Delete(&twin)
	return z.Serialize(&twin)
}

// deserialize decodes what stands under this key.
func deserialize(z Serializer, key string, data []byte, session *sessions.Session) error {
	if z, ok := z.(sealer); ok {
		return z.open(key, data, session)
	}
	if !binds(z) {
		return z.Deserialize(data, session)
	}
	twin := *session
	keys.Store(&twin, key)
	defer keys.Delete(&twin)
	err := z.Deserialize(data, &twin)
	*session = twin
	return err
}

// keys are those of the sessions that an application's own Serializer is working on, which
// may wrap Encrypt. Each is a copy for that one call: two goroutines may save one session.
var keys sync.Map // *sessions.Session: string

func keyOf(session *sessions.Session) string {
	key, _ := keys.Load(session)
	text, _ := key.(string)
	return text
}

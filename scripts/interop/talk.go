package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// patience is how long a step may take: an emulated machine is slow.
const patience = 30 * time.Second

// talk is the connection by which two halves tell each other what verbs do not
// carry: lines of JSON.
type talk struct {
	conn net.Conn
	rd   *bufio.Reader
}

func newTalk(c net.Conn) *talk { return &talk{conn: c, rd: bufio.NewReader(c)} }

func (t *talk) tell(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	t.conn.SetDeadline(time.Now().Add(patience))
	_, err = t.conn.Write(append(text, '\n'))
	return err
}

func (t *talk) hear(v any) error {
	t.conn.SetDeadline(time.Now().Add(patience))
	line, err := t.rd.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("the other half says nothing: %w", err)
	}
	return json.Unmarshal(line, v)
}

// meeting is a place of the scenario that both halves reach, or why one does
// not.
type meeting struct {
	At  string
	Err string `json:",omitempty"`
}

// meet waits for the other half to get to the same place.
func (t *talk) meet(at string) error {
	if err := t.tell(meeting{At: at}); err != nil {
		return err
	}
	var m meeting
	if err := t.hear(&m); err != nil {
		return err
	}
	if m.Err != "" {
		return fmt.Errorf("the other half, at %s: %s", m.At, m.Err)
	}
	if m.At != at {
		return fmt.Errorf("the halves have lost each other: this one is at %q, the other at %q", at, m.At)
	}
	return nil
}

// swap tells ours and hears theirs.
func swap[T any](t *talk, ours T) (theirs T, err error) {
	if err := t.tell(ours); err != nil {
		return theirs, err
	}
	return theirs, t.hear(&theirs)
}

package qinfer

import (
	"bytes"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"
)

// Tensor is one tensor in its raw form: see Bytes for BYTES, and encoding/binary, little endian, for all others.
type Tensor struct {
	Name, Datatype string
	Shape          []int64
	Data           []byte
}

// Response is one of the responses to a request.
type Response struct {
	Version    string // of the model
	Outputs    []Tensor
	Parameters map[string]any
	Failed     *Error
	Flags      int // see Final and End
	Claim      string
	Index      int
}

// Bits of Response.Flags: no other one follows, and this one has nothing in it.
const Final, End = 1, 4

// Error is what went wrong: Reason is one of docs/errors.md, RetryAfter is in seconds, or nil.
type Error struct {
	Reason, Message string
	RetryAfter      *float64
}

func (e *Error) Error() string { return e.Reason + ": " + e.Message }

func failure(reason, format string, values ...any) error {
	return &Error{Reason: reason, Message: fmt.Sprintf(format, values...)}
}

// Encode makes bytes of a frame.
func Encode(frame any) ([]byte, error) {
	var data bytes.Buffer
	encoder := msgpack.NewEncoder(&data)
	encoder.UseCompactInts(true)
	err := encoder.Encode(frame)
	return data.Bytes(), err
}

// Read decodes the elements of an array. What is missing or nil stays as it is, what nobody asks for is left out.
func Read(data []byte, into ...any) error {
	var elements []msgpack.RawMessage
	err := msgpack.Unmarshal(data, &elements)
	for place := 0; err == nil && place < min(len(elements), len(into)); place++ {
		if into[place] != nil && len(elements[place]) > 0 { // a nil is an empty one
			err = msgpack.Unmarshal(elements[place], into[place])
		}
	}
	return err
}

// ReadResponses decodes a response frame.
func ReadResponses(data []byte) (responses []Response, err error) {
	var version int
	var model string
	var failed *Error
	if err = Read(data, &version); err == nil && version != 1 {
		return nil, failure("unsupported_version", "protocol version %d; expected 1", version)
	}
	if err = Read(data, nil, nil, &model, nil, &responses, &failed); err == nil && failed != nil {
		err = failed // the worker could not read the request frame
	}
	for i := range responses {
		responses[i].Version = model
	}
	return responses, err
}

func (t Tensor) MarshalMsgpack() ([]byte, error) {
	return Encode([]any{t.Name, t.Datatype, t.Shape, t.Data})
}

func (t *Tensor) UnmarshalMsgpack(data []byte) error {
	return Read(data, &t.Name, &t.Datatype, &t.Shape, &t.Data)
}

func (r *Response) UnmarshalMsgpack(data []byte) error {
	r.Flags = Final
	return Read(data, nil, nil, &r.Failed, &r.Outputs, &r.Parameters, &r.Flags, nil, &r.Claim, nil, nil, &r.Index)
}

func (e *Error) UnmarshalMsgpack(data []byte) error {
	return Read(data, &e.Reason, &e.Message, &e.RetryAfter)
}

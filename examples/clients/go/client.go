// Package qinfer asks models over NATS. The protocol is docs/protocol.md; ask/main.go shows how this is used.
package qinfer

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/ugorji/go/codec"
)

type Client struct { // asks one model; Version is a number or "latest"
	jetstream.JetStream
	Namespace, Model, Version string
	Parameters                map[string]any
	Timeout                   time.Duration // of a request, whatever its context says
	Window                    int           // responses of a stream that may be on their way; 0 for no limit
}
type Tensor struct { // has raw data: little endian, and elements of BYTES behind their length
	Name, Datatype string
	Shape          []int64
	Data           []byte
}
type Response struct { // comes from a version of the model
	Version    string
	Outputs    []Tensor
	Parameters map[string]any
}
type Error struct { // has a reason of docs/errors.md, and seconds, or nil, after which a retry is worth it
	Reason, Message string
	RetryAfter      *float64
}

var options = codec.EncodeOptions{StructToArray: true, NilCollectionToZeroLength: true}
var handle = &codec.MsgpackHandle{WriteExt: true, BasicHandle: codec.BasicHandle{EncodeOptions: options}}

func (e *Error) Error() string              { return e.Reason + ": " + e.Message }
func Decode(data []byte, into ...any) error { return codec.NewDecoderBytes(data, handle).Decode(&into) }
func Encode(elements ...any) (data []byte) { // of an array, which Decode reads; what it lacks stays as it was
	codec.NewEncoderBytes(&data, handle).MustEncode(elements)
	return data
}
func (c Client) Infer(ctx context.Context, inputs ...Tensor) (first Response, err error) { // empty if there is none
	err = c.Stream(ctx, inputs, &first, func() bool { return false })
	return first, err
}

// Stream calls each with the next response in place, until it says no: that cancels the request, as does the context.
func (c Client) Stream(ctx context.Context, inputs []Tensor, response *Response, each func() bool) error {
	ctx, stop := context.WithTimeout(ctx, c.Timeout)
	defer stop()
	deadline, _ := ctx.Deadline()
	request := []any{1, "", inputs, []any{}, deadline.UnixMicro(), c.Parameters, 0, "", 0, "", "", "", "", 0, "", c.Window}
	model := strings.NewReplacer("%", "=", "+", "=20", ".", "=2E", "~", "=7E").Replace(url.QueryEscape(c.Model))
	infer, cancel := "qinfer."+c.Namespace+".infer."+model+"."+c.Version, "qinfer."+c.Namespace+".cancel."+model
	reply, version, taken, more, wanted := c.Conn().NewInbox(), strings.TrimPrefix(c.Version, "latest"), 0, true, true
	messages, _ := c.Conn().SubscribeSync(reply) // where there is none, to publish or to wait fails
	defer messages.Unsubscribe()
	_, err := c.Publish(ctx, infer, Encode(1, reply, c.Model, version, time.Now().UnixMicro(), 0, []any{request}))
	for err == nil && more && wanted {
		message, failure := messages.NextMsgWithContext(ctx)
		if err = failure; err != nil {
			break
		}
		protocol, served, failed, told := 0, "", (*Error)(nil), []codec.Raw{}
		err = Decode(message.Data, &protocol, nil, &served, nil, &told, &failed)
		if protocol > 1 {
			failed = &Error{Reason: "unsupported_version", Message: fmt.Sprint("expected 1, not ", protocol)}
		}
		for i := 0; i < len(told) && err == nil && failed == nil && more && wanted; i++ {
			next, flags, claim, index := Response{Version: served}, 1, "", 0
			err = Decode(told[i], nil, nil, &failed, &next.Outputs, &next.Parameters, &flags, nil, &claim, nil, nil, &index)
			switch more = flags&1 == 0; {
			case err != nil || failed != nil:
			case index > taken:
				failed = &Error{Reason: "bus_unavailable", Message: fmt.Sprintf("%d to %d are lost", taken, index-1)}
			case claim != "":
				failed = &Error{Reason: "unsupported", Message: "the answer is too large for this client"}
			case index == taken && flags&4 == 0: // else a worker died, and another began anew
				*response = next
				wanted = each()
			}
			taken = max(taken, index+1)
			if more && c.Window > 0 && (index+1)%((c.Window+1)/2) == 0 {
				c.Conn().Publish(cancel, Encode(1, reply, []int{}, [][]int{{1, taken}}))
			}
		}
		if failed != nil {
			err = failed
		}
	}
	if more {
		c.Conn().Publish(cancel, Encode(1, reply, []int{1}))
	}
	return err
}

// Package qinfer asks models over NATS. The protocol is docs/protocol.md; ask/main.go shows how this is used.
package qinfer

import (
	"cmp"
	"context"
	"iter"
	"time"

	"github.com/nats-io/nats.go"
)

// Client asks the models of one namespace. No request takes longer than Timeout, whatever its context says.
type Client struct {
	*nats.Conn
	Namespace string
	Timeout   time.Duration
}

// Request is what a model is asked. An empty Version stands for the newest, a Window of 0 for no limit.
type Request struct {
	Model, Version string
	Inputs         []Tensor
	Parameters     map[string]any
	Window         int // responses of a stream that may be on their way at once
}

// Infer returns the first response; nil where a decoupled model gives none.
func (c *Client) Infer(ctx context.Context, request Request) (*Response, error) {
	request.Window = 1
	for response, err := range c.Stream(ctx, request) {
		return response, err
	}
	return nil, nil
}

// Stream returns the responses in order. To leave the loop cancels the request, as does the end of the context.
func (c *Client) Stream(ctx context.Context, request Request) iter.Seq2[*Response, error] {
	return func(yield func(*Response, error) bool) {
		ctx, stop := context.WithTimeout(ctx, c.Timeout)
		defer stop()
		if err := c.exchange(ctx, request, yield); err != nil {
			yield(nil, err)
		}
	}
}

func (c *Client) exchange(ctx context.Context, r Request, yield func(*Response, error) bool) error {
	inbox, model, taken, over := c.NewInbox(), escape(r.Model), 0, false
	messages, err := c.SubscribeSync(inbox + ".*")
	if err != nil {
		return failure("bus_unavailable", "%v", err)
	}
	defer messages.Unsubscribe()
	defer func() {
		if !over {
			c.send("cancel."+model, "", 1, inbox+".reply", []int{1})
		}
	}()
	deadline, _ := ctx.Deadline()
	parameters := r.Parameters
	if parameters == nil {
		parameters = map[string]any{} // nil would travel as nil
	}
	request := []any{1, "", append([]Tensor{}, r.Inputs...), []string{}, deadline.UnixMicro(), parameters,
		0, "", 0, "", "", "", "", 0, "", r.Window}
	err = c.send("infer."+model+"."+cmp.Or(r.Version, "latest"), inbox+".stored",
		1, inbox+".reply", r.Model, r.Version, time.Now().UnixMicro(), 0, []any{request})
	for err == nil {
		var responses []Response
		responses, err = receive(ctx, messages)
		for _, response := range responses {
			over = response.Failed != nil || response.Flags&Final != 0
			switch {
			case response.Failed != nil:
				return response.Failed
			case response.Index > taken:
				return failure("bus_unavailable", "responses %d to %d are lost", taken, response.Index-1)
			case response.Claim != "":
				return failure("unsupported", "the answer is too large for this client")
			case response.Index == taken && response.Flags&End == 0 && !yield(&response, nil), over:
				return nil
			}
			taken = max(taken, response.Index+1) // less, when a worker died and another began anew
			if r.Window > 0 && (response.Index+1)%((r.Window+1)/2) == 0 {
				err = c.send("cancel."+model, "", 1, inbox+".reply", []int{}, [][]int{{1, taken}})
			}
		}
	}
	return err
}

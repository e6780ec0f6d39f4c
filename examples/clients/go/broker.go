package qinfer

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// Models returns what live workers serve, as each of them describes it.
func (c *Client) Models() (models []map[string]string, err error) {
	answers, err := c.SubscribeSync(c.NewInbox())
	if err != nil {
		return nil, err
	}
	defer answers.Unsubscribe()
	err = c.PublishRequest("$SRV.INFO", answers.Subject, nil)
	for wait := time.Second; err == nil; wait = 300 * time.Millisecond {
		var message *nats.Msg
		var told struct{ Metadata map[string]string }
		if message, err = answers.NextMsg(wait); err == nil && json.Unmarshal(message.Data, &told) == nil &&
			told.Metadata["protocol"] == "qinfer/1" && told.Metadata["namespace"] == c.Namespace {
			models = append(models, told.Metadata)
		}
	}
	if errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders) {
		err = nil // all have told, or there is nobody who could
	}
	return models, err
}

func (c *Client) send(subject, answer string, frame ...any) error {
	data, err := Encode(frame)
	if err == nil {
		err = c.PublishMsg(&nats.Msg{Subject: "qinfer." + c.Namespace + "." + subject, Reply: answer, Data: data})
	}
	return err
}

// receive waits for the next responses. There are none in the broker's word that it has stored the request.
func receive(ctx context.Context, messages *nats.Subscription) ([]Response, error) {
	message, err := messages.NextMsgWithContext(ctx)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, failure("deadline_exceeded", "no answer in time")
	case errors.Is(err, context.Canceled):
		return nil, failure("cancelled", "the caller has gone")
	case errors.Is(err, nats.ErrNoResponders):
		return nil, failure("no_worker", "the model has no queue")
	case err != nil:
		return nil, failure("bus_unavailable", "%v", err)
	case strings.HasSuffix(message.Subject, ".reply"):
		return ReadResponses(message.Data)
	}
	return nil, stored(message.Data)
}

func stored(data []byte) error {
	var answer struct{ Error *nats.APIError }
	if err := json.Unmarshal(data, &answer); err != nil || answer.Error == nil {
		return err
	}
	switch answer.Error.ErrorCode {
	case 10077, 10047, 10054:
		return failure("queue_full", "%s", answer.Error.Description)
	}
	return failure("bus_unavailable", "%s", answer.Error.Description)
}

// escape makes one token of a subject from a name.
func escape(name string) string {
	return strings.NewReplacer("%", "=", "+", "=20", ".", "=2E", "~", "=7E").Replace(url.QueryEscape(name))
}

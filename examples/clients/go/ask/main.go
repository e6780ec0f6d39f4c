// Command ask lists the models that can be asked for, or asks one of them:
//
//	go run ./ask mlp x FP32 1,2 1.5 2.5
package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"example.org/qinfer"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func main() {
	log.SetFlags(0)
	connection, err := nats.Connect(cmp.Or(os.Getenv("QINFER_NATS"), nats.DefaultURL))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	namespace := cmp.Or(os.Getenv("QINFER_NAMESPACE"), "default")
	if len(os.Args) == 1 {
		err = list(connection, namespace)
	} else {
		err = ask(connection, namespace, os.Args[1], os.Args[2:])
	}
	if errors.Is(err, jetstream.ErrNoStreamResponse) {
		err = fmt.Errorf("no_worker: %w", err)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// list asks the services API of NATS, and waits until nobody has told anything more for a while.
func list(connection *nats.Conn, namespace string) error {
	answers, err := connection.SubscribeSync(connection.NewInbox())
	if err != nil {
		return err
	}
	defer answers.Unsubscribe()
	err = connection.PublishRequest("$SRV.INFO", answers.Subject, nil)
	for wait := time.Second; err == nil; wait = 300 * time.Millisecond {
		var message *nats.Msg
		if message, err = answers.NextMsg(wait); err != nil {
			break
		}
		var told struct{ Metadata map[string]string }
		if err := json.Unmarshal(message.Data, &told); err != nil {
			continue // a service of somebody else's
		}
		if model := told.Metadata; model["protocol"] == "qinfer/1" && model["namespace"] == namespace {
			fmt.Println(model["model"], model["model_version"], model["inputs"])
		}
	}
	if errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders) {
		return nil // all have told, or there is nobody who could
	}
	return err
}

func ask(connection *nats.Conn, namespace, model string, words []string) error {
	inputs, err := parse(words)
	if err != nil {
		return err
	}
	js, err := jetstream.New(connection)
	if err != nil {
		return err
	}
	client := qinfer.Client{JetStream: js, Namespace: namespace, Model: model, Version: "latest", Window: 32,
		Timeout: 10 * time.Second}
	var response qinfer.Response
	return client.Stream(context.Background(), inputs, &response, func() bool {
		for _, output := range response.Outputs {
			fmt.Println(output.Name, output.Datatype, strings.Trim(commas(output.Shape), "[]"), show(output))
		}
		return true
	})
}

func commas(shape []int64) string { return strings.ReplaceAll(fmt.Sprint(shape), " ", ",") }

// parse makes a tensor of each name, datatype, shape and its values; FP32, INT32, INT64 and BYTES will do for here.
func parse(words []string) (inputs []qinfer.Tensor, err error) {
	for len(words) >= 3 {
		tensor, count := qinfer.Tensor{Name: words[0], Datatype: words[1]}, 1
		if err := json.Unmarshal([]byte("["+words[2]+"]"), &tensor.Shape); err != nil {
			return nil, err
		}
		for _, size := range tensor.Shape {
			count *= int(size)
		}
		given := words[3:min(3+count, len(words))]
		words = words[3+len(given):]
		for _, text := range given {
			if tensor.Data, err = add(tensor.Data, tensor.Datatype, text); err != nil {
				return nil, err
			}
		}
		inputs = append(inputs, tensor)
	}
	return inputs, nil
}

func add(data []byte, datatype, text string) ([]byte, error) {
	switch datatype {
	case "FP32":
		value, err := strconv.ParseFloat(text, 32)
		return binary.LittleEndian.AppendUint32(data, math.Float32bits(float32(value))), err
	case "INT32":
		value, err := strconv.ParseInt(text, 10, 32)
		return binary.LittleEndian.AppendUint32(data, uint32(value)), err
	case "INT64":
		value, err := strconv.ParseInt(text, 10, 64)
		return binary.LittleEndian.AppendUint64(data, uint64(value)), err
	case "BYTES":
		return append(binary.LittleEndian.AppendUint32(data, uint32(len(text))), text...), nil
	}
	return nil, fmt.Errorf("datatype %s; expected FP32, INT32, INT64 or BYTES", datatype)
}

func show(tensor qinfer.Tensor) string {
	var values any = tensor.Data
	switch tensor.Datatype {
	case "FP32":
		values = decoded[float32](tensor.Data, 4)
	case "INT32":
		values = decoded[int32](tensor.Data, 4)
	case "INT64":
		values = decoded[int64](tensor.Data, 8)
	case "BYTES":
		return strings.Join(items(tensor.Data), " ")
	}
	return strings.Trim(fmt.Sprint(values), "[]")
}

func items(data []byte) (found []string) {
	for len(data) >= 4 {
		end := min(4+int(binary.LittleEndian.Uint32(data)), len(data))
		found, data = append(found, string(data[4:end])), data[end:]
	}
	return found
}

func decoded[T float32 | int32 | int64](data []byte, size int) []T {
	values := make([]T, len(data)/size)
	binary.Decode(data, binary.LittleEndian, values)
	return values
}

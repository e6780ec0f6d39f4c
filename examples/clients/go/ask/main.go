// Command ask lists the models that can be asked for, or asks one of them:
//
//	go run ./ask mlp x FP32 1,2 1.5 2.5
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"example.org/qinfer"
	"github.com/nats-io/nats.go"
)

func main() {
	log.SetFlags(0)
	connection, err := nats.Connect(cmp.Or(os.Getenv("QINFER_NATS"), nats.DefaultURL))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	namespace := cmp.Or(os.Getenv("QINFER_NAMESPACE"), "default")
	client := &qinfer.Client{Conn: connection, Namespace: namespace, Timeout: 10 * time.Second}
	if len(os.Args) == 1 {
		err = list(client)
	} else {
		err = ask(client, os.Args[1], os.Args[2:])
	}
	if err != nil {
		log.Fatal(err)
	}
}

func list(client *qinfer.Client) error {
	models, err := client.Models()
	for _, model := range models {
		fmt.Println(model["model"], model["model_version"], model["inputs"])
	}
	return err
}

func ask(client *qinfer.Client, model string, words []string) error {
	inputs, err := parse(words)
	if err != nil {
		return err
	}
	for response, err := range client.Stream(context.Background(), qinfer.Request{Model: model, Inputs: inputs}) {
		if err != nil {
			return err
		}
		for _, output := range response.Outputs {
			fmt.Println(output.Name, output.Datatype, strings.Trim(commas(output.Shape), "[]"), show(output))
		}
	}
	return nil
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
		return append(data, qinfer.Bytes([]byte(text))...), nil
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
		return string(bytes.Join(qinfer.Items(tensor.Data), []byte(" ")))
	}
	return strings.Trim(fmt.Sprint(values), "[]")
}

func decoded[T float32 | int32 | int64](data []byte, size int) []T {
	values := make([]T, len(data)/size)
	binary.Decode(data, binary.LittleEndian, values)
	return values
}

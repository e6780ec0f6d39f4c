// Does with the example's client what the tests say, one JSON object a line; see tests/clients/driven.py.
// It is built beside a copy of the client: driver URL NAMESPACE, or driver vectors FOLDER.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"time"

	"example.org/qinfer"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/ugorji/go/codec"
)

var kinds = map[string]reflect.Type{
	"BOOL": reflect.TypeFor[bool](), "FP16": reflect.TypeFor[uint16](), "BF16": reflect.TypeFor[uint16](),
	"UINT8": reflect.TypeFor[uint8](), "UINT16": reflect.TypeFor[uint16](), "UINT32": reflect.TypeFor[uint32](),
	"UINT64": reflect.TypeFor[uint64](), "INT8": reflect.TypeFor[int8](), "INT16": reflect.TypeFor[int16](),
	"INT32": reflect.TypeFor[int32](), "INT64": reflect.TypeFor[int64](), "FP32": reflect.TypeFor[float32](),
	"FP64": reflect.TypeFor[float64](),
}

type command struct {
	Key        int
	Of         int
	Do         string
	Model      string
	Version    string
	Inputs     [][]any
	Parameters map[string]any
	Timeout    int
	Window     int
}

type told struct {
	Key   int `json:"key"`
	Got   any `json:"got"`
	Error any `json:"error,omitempty"`
}

type stream struct {
	next  func() (*qinfer.Response, error, bool)
	leave func()
	abort context.CancelFunc
}

type driver struct {
	client  qinfer.Client // of no model yet
	mutex   sync.Mutex
	streams map[int]stream
}

var output sync.Mutex

func say(value any) {
	data, err := json.Marshal(value)
	if err != nil {
		log.Fatal(err)
	}
	output.Lock()
	defer output.Unlock()
	os.Stdout.Write(append(data, '\n'))
}

func main() {
	log.SetFlags(0)
	if os.Args[1] == "vectors" {
		readVectors(os.Args[2])
		return
	}
	connection, err := nats.Connect(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	js, err := jetstream.New(connection)
	if err != nil {
		log.Fatal(err)
	}
	client := qinfer.Client{JetStream: js, Namespace: os.Args[2], Timeout: time.Minute}
	d := driver{client: client, streams: map[int]stream{}}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var c command
		decoder := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		decoder.UseNumber()
		if err := decoder.Decode(&c); err != nil {
			log.Fatal(err)
		}
		for name, value := range c.Parameters {
			c.Parameters[name] = number(value)
		}
		if c.Do == "open" || c.Do == "infer" { // before anybody refers to it
			d.open(c)
		}
		go d.act(c)
	}
}

func (d *driver) open(c command) {
	client, inputs := d.client, []qinfer.Tensor{}
	client.Model, client.Version, client.Parameters, client.Window = c.Model, cmp.Or(c.Version, "latest"), c.Parameters, c.Window
	for _, input := range c.Inputs {
		inputs = append(inputs, tensor(input))
	}
	timeout := time.Duration(c.Timeout) * time.Millisecond
	if c.Do == "infer" { // by the client's timeout; streams by their context's
		client.Timeout = timeout
		ctx, abort := context.WithCancel(context.Background())
		d.keep(c.Of, stream{abort: abort, next: func() (*qinfer.Response, error, bool) {
			response, err := client.Infer(ctx, inputs...)
			if response.Version == "" {
				return nil, err, true
			}
			return &response, err, true
		}})
		return
	}
	ctx, abort := context.WithTimeout(context.Background(), timeout)
	next, leave := iter.Pull2(func(yield func(*qinfer.Response, error) bool) {
		var response qinfer.Response
		if err := client.Stream(ctx, inputs, &response, func() bool { return yield(&response, nil) }); err != nil {
			yield(nil, err)
		}
	})
	d.keep(c.Of, stream{next, leave, abort})
}

func (d *driver) keep(key int, s stream) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.streams[key] = s
}

func (d *driver) act(c command) {
	d.mutex.Lock()
	s := d.streams[c.Of]
	d.mutex.Unlock()
	answer := told{Key: c.Key}
	switch c.Do {
	case "infer", "next":
		response, err, more := s.next()
		answer.Got, answer.Error = given(response), failed(err)
		if !more {
			answer.Got = "done"
		}
	case "leave":
		s.leave()
	case "abort":
		s.abort()
	}
	say(answer)
}

// failed gives what the context and the broker say the reasons by which clients of other languages know it.
func failed(err error) any {
	if err == nil {
		return nil
	}
	var known *qinfer.Error
	if errors.As(err, &known) {
		return map[string]any{"reason": known.Reason, "message": known.Message, "retry_after": known.RetryAfter}
	}
	reason := "?"
	for wrong, name := range map[error]string{
		context.DeadlineExceeded: "deadline_exceeded", context.Canceled: "cancelled",
		jetstream.ErrNoStreamResponse: "no_worker", &jetstream.APIError{ErrorCode: 10077}: "queue_full",
	} {
		if errors.Is(err, wrong) {
			reason = name
		}
	}
	return map[string]any{"reason": reason, "message": err.Error()}
}

// number makes integers of what JSON knows as numbers, where they are.
func number(value any) any {
	told, ok := value.(json.Number)
	if !ok {
		return value
	}
	if whole, err := told.Int64(); err == nil {
		return whole
	}
	fraction, _ := told.Float64()
	return fraction
}

func tensor(input []any) qinfer.Tensor {
	made := qinfer.Tensor{Name: input[0].(string), Datatype: input[1].(string)}
	for _, size := range input[2].([]any) {
		made.Shape = append(made.Shape, number(size).(int64))
	}
	var data bytes.Buffer
	for _, value := range input[3].([]any) {
		text := value.(string)
		if made.Datatype == "BYTES" {
			item, _ := hex.DecodeString(text)
			binary.Write(&data, binary.LittleEndian, uint32(len(item)))
			data.Write(item)
			continue
		}
		number := reflect.New(kinds[made.Datatype])
		if _, err := fmt.Sscan(text, number.Interface()); err != nil {
			log.Fatalf("%s %s: %v", made.Datatype, text, err)
		}
		binary.Write(&data, binary.LittleEndian, number.Interface())
	}
	made.Data = data.Bytes()
	return made
}

func given(response *qinfer.Response) any {
	if response == nil {
		return nil
	}
	outputs := []any{}
	for _, output := range response.Outputs {
		outputs = append(outputs, []any{output.Name, output.Datatype, output.Shape, texts(output)})
	}
	return map[string]any{"version": response.Version, "parameters": response.Parameters, "outputs": outputs}
}

func texts(output qinfer.Tensor) []string {
	found := []string{}
	if output.Datatype == "BYTES" {
		for data := output.Data; len(data) > 0; {
			end := 4 + binary.LittleEndian.Uint32(data)
			found, data = append(found, hex.EncodeToString(data[4:end])), data[end:]
		}
		return found
	}
	kind := kinds[output.Datatype]
	numbers := reflect.MakeSlice(reflect.SliceOf(kind), len(output.Data)/int(kind.Size()), len(output.Data)/int(kind.Size()))
	if _, err := binary.Decode(output.Data, binary.LittleEndian, numbers.Interface()); err != nil {
		log.Fatal(err)
	}
	for i := range numbers.Len() {
		found = append(found, fmt.Sprint(numbers.Index(i)))
	}
	return found
}

func readVectors(folder string) {
	files, _ := filepath.Glob(filepath.Join(folder, "*.bin"))
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			log.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".bin")
		told := map[string]any{"name": name}
		var elements []any
		if err := codec.NewDecoderBytes(data, wire).Decode(&elements); err != nil {
			told["unreadable"] = err.Error()
		} else {
			told["encoded"] = printable(qinfer.Encode(elements...))
			told["wire"] = printable(elements)
		}
		if strings.HasPrefix(name, "response-") {
			if responses, reason := read(data); reason != "" {
				told["error"] = reason
			} else {
				told["responses"] = responses
			}
		}
		say(told)
	}
}

// wire reads anything, with text and numbers as they are in JSON.
var wire = &codec.MsgpackHandle{WriteExt: true, BasicHandle: codec.BasicHandle{
	DecodeOptions: codec.DecodeOptions{MapType: reflect.TypeFor[map[string]any]()}}}

// read does with a response frame what Stream does.
func read(data []byte) (list []any, reason string) {
	var version int
	var failed *qinfer.Error
	var responses []codec.Raw
	err := qinfer.Decode(data, &version, nil, nil, nil, &responses, &failed)
	switch {
	case version > 1:
		return nil, "unsupported_version"
	case err != nil:
		return nil, "malformed_message"
	case failed != nil:
		return nil, failed.Reason
	}
	for _, response := range responses {
		var failed *qinfer.Error
		var tensors []qinfer.Tensor
		parameters, flags, claim, index := map[string]any{}, 1, "", 0
		err := qinfer.Decode(response, nil, nil, &failed, &tensors, &parameters, &flags, nil, &claim, nil, nil, &index)
		if err != nil {
			return nil, "malformed_message"
		}
		outputs, wrong := []any{}, any(nil)
		for _, t := range tensors {
			outputs = append(outputs, []any{t.Name, t.Datatype, t.Shape, printable(t.Data)})
		}
		if failed != nil {
			wrong = []any{failed.Reason, failed.Message, failed.RetryAfter}
		}
		list = append(list, map[string]any{"error": wrong, "outputs": outputs, "parameters": parameters,
			"flags": flags, "claim": claim, "index": index})
	}
	return list, ""
}

func printable(value any) any {
	switch value := value.(type) {
	case []byte:
		return map[string]string{"$hex": hex.EncodeToString(value)}
	case []any:
		for i := range value {
			value[i] = printable(value[i])
		}
	case map[string]any:
		for key := range value {
			value[key] = printable(value[key])
		}
	}
	return value
}

// Does with the example's client what the tests say, one JSON object a line; see tests/clients/driven.py.
// It is built beside a copy of the client: driver URL NAMESPACE, or driver vectors FOLDER.
package main

import (
	"bufio"
	"bytes"
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
	"github.com/vmihailenco/msgpack/v5"
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
	url, namespace string
	client         *qinfer.Client
	mutex          sync.Mutex
	streams        map[int]stream
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
	client := &qinfer.Client{Conn: connection, Namespace: os.Args[2], Timeout: time.Minute}
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
	request := qinfer.Request{Model: c.Model, Version: c.Version, Parameters: c.Parameters, Window: c.Window}
	for _, input := range c.Inputs {
		request.Inputs = append(request.Inputs, tensor(input))
	}
	ctx, abort := context.WithTimeout(context.Background(), time.Duration(c.Timeout)*time.Millisecond)
	if c.Do == "infer" {
		d.keep(c.Of, stream{abort: abort, next: func() (*qinfer.Response, error, bool) {
			response, err := d.client.Infer(ctx, request)
			return response, err, true
		}})
		return
	}
	next, leave := iter.Pull2(d.client.Stream(ctx, request))
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
	case "models":
		models, err := d.client.Models()
		answer.Got, answer.Error = models, failed(err)
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

func failed(err error) any {
	var known *qinfer.Error
	if err == nil {
		return nil
	}
	if errors.As(err, &known) {
		return map[string]any{"reason": known.Reason, "message": known.Message, "retry_after": known.RetryAfter}
	}
	return map[string]any{"reason": "?", "message": err.Error()}
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
			data.Write(qinfer.Bytes(item))
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
		for _, item := range qinfer.Items(output.Data) {
			found = append(found, hex.EncodeToString(item))
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
		var wire any
		if err := errors.Join(qinfer.Read(data), msgpack.Unmarshal(data, &wire)); err != nil {
			told["unreadable"] = err.Error()
		} else {
			encoded, _ := qinfer.Encode(wire)
			told["wire"], told["encoded"] = printable(wire), printable(encoded)
		}
		if strings.HasPrefix(name, "response-") {
			responses, err := qinfer.ReadResponses(data)
			var known *qinfer.Error
			if errors.As(err, &known) {
				told["error"] = known.Reason
			} else if err == nil {
				told["responses"] = read(responses)
			}
		}
		say(told)
	}
}

func read(responses []qinfer.Response) any {
	list := []any{}
	for _, r := range responses {
		outputs := []any{}
		for _, t := range r.Outputs {
			outputs = append(outputs, []any{t.Name, t.Datatype, t.Shape, printable(t.Data)})
		}
		var failed any
		if r.Failed != nil {
			failed = []any{r.Failed.Reason, r.Failed.Message, r.Failed.RetryAfter}
		}
		parameters := r.Parameters
		if parameters == nil {
			parameters = map[string]any{}
		}
		list = append(list, map[string]any{"error": failed, "outputs": outputs, "parameters": parameters,
			"flags": r.Flags, "claim": r.Claim, "index": r.Index})
	}
	return list
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

package qinfer

import "encoding/binary"

// Bytes makes the data of a BYTES tensor.
func Bytes(items ...[]byte) (data []byte) {
	for _, item := range items {
		data = append(binary.LittleEndian.AppendUint32(data, uint32(len(item))), item...)
	}
	return data
}

// Items takes it apart again.
func Items(data []byte) (items [][]byte) {
	for len(data) >= 4 {
		end := min(4+int(binary.LittleEndian.Uint32(data)), len(data))
		items, data = append(items, data[4:end]), data[end:]
	}
	return items
}

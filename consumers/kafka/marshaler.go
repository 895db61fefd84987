package kafka

import (
	"fmt"
	"slices"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// HeaderUUID carries Message.UUID. The name is the one that Watermill's own Kafka adapter uses, so that programs built on
	// either can read each other's messages.
	HeaderUUID = "_watermill_message_uuid"

	// MetadataPartitionKey is the metadata entry that becomes the record's key, unless DefaultMarshaler says otherwise.
	MetadataPartitionKey = "partition_key"
)

// A Marshaler turns messages into records and back. It is used from many goroutines at once.
type Marshaler interface {
	// Marshal makes the record for msg. The topic is a hint: the Publisher sets it on the record again.
	Marshal(topic string, msg *message.Message) (*kgo.Record, error)

	// Unmarshal makes a new message. It is called again for every delivery of the record, so it must not change the record.
	// A record for which it fails goes to SubscriberConfig.OnUndecodable and is passed over.
	Unmarshal(record *kgo.Record) (*message.Message, error)
}

// DefaultMarshaler puts the UUID and each metadata entry into a header, and the payload into the value.
// It can read every record that Kafka can hold.
type DefaultMarshaler struct {
	// KeyMetadata names the metadata entry that becomes the record's key. A message without it has no key, and the client
	// chooses the partition. Default MetadataPartitionKey.
	KeyMetadata string
}

func (m DefaultMarshaler) keyName() string {
	if m.KeyMetadata == "" {
		return MetadataPartitionKey
	}
	return m.KeyMetadata
}

// Marshal sorts the headers by name: the same message always gives the same bytes. The entry that becomes the key is a
// header too, so that a reader who knows nothing of keys still gets all metadata.
func (m DefaultMarshaler) Marshal(topic string, msg *message.Message) (*kgo.Record, error) {
	record := &kgo.Record{Topic: topic, Value: msg.Payload, Headers: make([]kgo.RecordHeader, 0, len(msg.Metadata)+1)}
	record.Headers = append(record.Headers, kgo.RecordHeader{Key: HeaderUUID, Value: []byte(msg.UUID)})
	for name, value := range msg.Metadata {
		if name == HeaderUUID {
			return nil, fmt.Errorf("expected metadata without %q, which is the header of the UUID, but found it with value %q: remove it", name, value)
		}
		record.Headers = append(record.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
	}
	if len(record.Headers) > 2 {
		slices.SortFunc(record.Headers[1:], func(a, b kgo.RecordHeader) int {
			if a.Key < b.Key {
				return -1
			}
			return 1 // names come from a map, so no two are equal
		})
	}
	if key, ok := msg.Metadata[m.keyName()]; ok {
		record.Key = []byte(key)
	}
	return record, nil
}

// Unmarshal reads a record of any producer. Of several headers with one name the last counts. A record without a UUID gets
// "topic/partition/offset", which is the same at each delivery; a key that no header repeats becomes metadata, so that passing
// the message on keeps its key. The payload is the record's own memory: a handler that wants to change it in place must copy it.
func (m DefaultMarshaler) Unmarshal(record *kgo.Record) (*message.Message, error) {
	msg := message.NewMessage("", record.Value)
	for _, h := range record.Headers {
		if h.Key == HeaderUUID {
			msg.UUID = string(h.Value)
			continue
		}
		msg.Metadata[h.Key] = string(h.Value)
	}
	if msg.UUID == "" {
		msg.UUID = fmt.Sprintf("%s/%d/%d", record.Topic, record.Partition, record.Offset)
	}
	if record.Key != nil {
		if _, ok := msg.Metadata[m.keyName()]; !ok {
			msg.Metadata[m.keyName()] = string(record.Key)
		}
	}
	return msg, nil
}

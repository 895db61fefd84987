package kafkaclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/internal/faultproxy"
)

// behind is a broker that says that it is where the proxy listens.
type behind struct {
	net.Listener
	address net.Addr
}

func (b behind) Addr() net.Addr { return b.address }

// brokerBehind is a broker in memory with a topic, which clients reach through the proxy alone.
func brokerBehind(t *testing.T) *faultproxy.Proxy {
	t.Helper()
	proxy, err := faultproxy.Listen("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	address, err := net.ResolveTCPAddr("tcp", proxy.Address())
	if err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy.SetTarget(listener.Addr().String())
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "t"),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return behind{listener, address}, nil }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return proxy
}

// TestCloseEnds closes consumers that hold a fetch session, and members of a group, while the broker does not answer: on connections
// that are there, and while new ones are being made.
func TestCloseEnds(t *testing.T) {
	t.Parallel()
	for name, silence := range map[string]func(*faultproxy.Proxy){
		"answers":     func(*faultproxy.Proxy) {},
		"silent":      func(p *faultproxy.Proxy) { p.Stall(faultproxy.Both) },
		"connections": func(p *faultproxy.Proxy) { p.Stall(faultproxy.Both); p.Cut() },
		"refuses":     func(p *faultproxy.Proxy) { p.Refuse(); p.Cut() },
	} {
		for role, opts := range map[string][]kgo.Opt{
			"reader": {kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"t": {0: kgo.NewOffset().AtStart()}})},
			"member": {kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())},
		} {
			t.Run(name+" to a "+role, func(t *testing.T) {
				t.Parallel()
				proxy := brokerBehind(t)
				c, err := New(append(opts, kgo.SeedBrokers(proxy.Address()), kgo.FetchMaxWait(100*time.Millisecond))...)
				if err != nil {
					t.Fatal(err)
				}
				for range 2 { // the second fetch is in the session that the first has begun
					if err := c.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Value: []byte("x")}).FirstErr(); err != nil {
						t.Fatal(err)
					}
					if fetches := c.PollFetches(t.Context()); fetches.NumRecords() == 0 {
						t.Fatalf("expected a record, but: %v", fetches.Err())
					}
				}
				silence(proxy)
				polling, stop := context.WithCancel(t.Context())
				polled := make(chan struct{})
				go func() {
					defer close(polled)
					for polling.Err() == nil {
						c.PollFetches(polling)
					}
				}()
				under := make(chan error, 1)
				c.Produce(t.Context(), &kgo.Record{Topic: "t"}, func(_ *kgo.Record, err error) { under <- err })
				stop()
				<-polled
				began := time.Now()
				c.Close()
				if took := time.Since(began); took > CloseLimit+2*time.Second {
					t.Errorf("expected Close to end within little more than %s, but it took %s", CloseLimit, took)
				}
				if err := <-under; name != "answers" && !errors.Is(err, kgo.ErrClientClosed) && !errors.Is(err, context.Canceled) {
					t.Errorf("expected what is under way to hear of the end, but it heard: %v", err)
				}
			})
		}
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		err  error
		says string
	}{
		{fmt.Errorf("read: %w", kerr.UnknownTopicID), "start this process again"},
		{kerr.MessageTooLarge, "topics plan"},
		{kerr.InvalidRecord, "cleanup.policy"},
	} {
		if got := Explain(c.err); !errors.Is(got, c.err) || !strings.Contains(got.Error(), c.says) {
			t.Errorf("expected to be told to look at %q, but got %v", c.says, got)
		}
	}
	if err := errors.New("another"); !errors.Is(Explain(err), err) || Explain(err).Error() != "another" || Explain(nil) != nil {
		t.Errorf("expected other errors to stay as they are, but got %v", Explain(err))
	}
}

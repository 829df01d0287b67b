package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// sample is one round: what harness.rs calls a Sample.
type sample struct {
	PerSecond float64 `json:"per_second"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
}

// etcdMutex locks and unlocks, each client its own mutex under its own session, as etcd's documentation shows it.
func etcdMutex(args []string) error {
	flags := flag.NewFlagSet("etcd-mutex", flag.ExitOnError)
	endpoint := flags.String("endpoint", "", "where etcd listens")
	clients := flags.Int("clients", 1, "how many at once")
	span := flags.Duration("span", time.Second, "how long to measure")
	warmUp := flags.Duration("warm-up", 500*time.Millisecond, "what is left out before")
	_ = flags.Parse(args)

	client, err := clientv3.New(clientv3.Config{Endpoints: []string{*endpoint}, DialTimeout: 10 * time.Second})
	if err != nil {
		return fmt.Errorf("etcd at %s: %w", *endpoint, err)
	}
	defer client.Close()

	mutexes := make([]*concurrency.Mutex, *clients)
	for i := range mutexes {
		session, err := concurrency.NewSession(client, concurrency.WithTTL(60))
		if err != nil {
			return fmt.Errorf("a session: %w", err)
		}
		defer session.Close()
		mutexes[i] = concurrency.NewMutex(session, fmt.Sprintf("/bench/%d", i))
	}

	begin := time.Now().Add(*warmUp)
	end := begin.Add(*span)
	took, errs := make([][]time.Duration, *clients), make([]error, *clients)
	var group sync.WaitGroup
	for i, mutex := range mutexes {
		group.Add(1)
		go func() {
			defer group.Done()
			took[i], errs[i] = again(mutex, begin, end)
		}()
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	all := slices.Concat(took...)
	if len(all) == 0 {
		return errors.New("nothing ended in this round")
	}
	slices.Sort(all)
	at := func(share float64) float64 { return float64(all[int(float64(len(all)-1)*share)].Microseconds()) / 1000 }
	return json.NewEncoder(os.Stdout).Encode(sample{float64(len(all)) / time.Since(begin).Seconds(), at(0.50), at(0.99)})
}

func again(mutex *concurrency.Mutex, begin, end time.Time) (took []time.Duration, err error) {
	for {
		began := time.Now()
		if !began.Before(end) {
			return took, nil
		}
		if err := mutex.Lock(context.Background()); err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		if err := mutex.Unlock(context.Background()); err != nil {
			return nil, fmt.Errorf("unlock: %w", err)
		}
		if began.After(begin) {
			took = append(took, time.Since(began))
		}
	}
}

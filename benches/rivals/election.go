package main

import (
	"context"
	"fmt"
	"os"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// election runs one candidate of an election by client-go, with the settings that
// Kubernetes' own components have by default (15, 10 and 2 seconds), until it is
// killed. It prints "standing" when it begins, and "leading" when it was elected.
//
//	KUBECONFIG=FILE rivals election NAMESPACE NAME IDENTITY
func election(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: election NAMESPACE NAME IDENTITY")
	}
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: args[0], Name: args[1]},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: args[2]},
		},
		LeaseDuration: 15 * time.Second,
		RenewDeadline: 10 * time.Second,
		RetryPeriod:   2 * time.Second,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { fmt.Println("leading") },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	fmt.Println("standing")
	elector.Run(context.Background())
	return fmt.Errorf("the leadership was lost")
}

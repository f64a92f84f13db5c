package store

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// Memory is a Store that forgets everything when the process ends.
type Memory struct {
	mu     sync.RWMutex
	values map[Namespace]map[string][]byte
}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{values: map[Namespace]map[string][]byte{}}
}

// Get implements Store.
func (m *Memory) Get(_ context.Context, ns Namespace, key string) ([]byte, error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	v, ok := m.values[ns][key]
	if !ok {
		return nil, fmt.Errorf("%w: %s in %s", ErrNotFound, key, ns)
	}
	return bytes.Clone(v), nil
}

// Put implements Store.
func (m *Memory) Put(_ context.Context, ns Namespace, key string, value []byte) error {
	return m.set(ns, key, value, false)
}

// Create implements Store.
func (m *Memory) Create(_ context.Context, ns Namespace, key string, value []byte) error {
	return m.set(ns, key, value, true)
}

func (m *Memory) set(ns Namespace, key string, value []byte, fresh bool) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if err := checkValue(value); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.values[ns] == nil {
		m.values[ns] = map[string][]byte{}
	}
	_, exists := m.values[ns][key]
	switch {
	case exists && fresh:
		return fmt.Errorf("%w: %s in %s", ErrExists, key, ns)
	case !exists && len(m.values[ns]) >= MaxKeys:
		return fmt.Errorf("%w: %s has %d keys", ErrFull, ns, MaxKeys)
	}
	m.values[ns][key] = bytes.Clone(value)
	return nil
}

// Delete implements Store.
func (m *Memory) Delete(_ context.Context, ns Namespace, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.values[ns][key]; !ok {
		return fmt.Errorf("%w: %s in %s", ErrNotFound, key, ns)
	}
	delete(m.values[ns], key)
	return nil
}

// List implements Store.
func (m *Memory) List(_ context.Context, ns Namespace) ([]string, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Sorted(maps.Keys(m.values[ns])), nil
}

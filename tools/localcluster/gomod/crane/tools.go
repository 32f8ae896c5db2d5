//go:build tools

// Package tools pins the programs that the local cluster builds.
package tools

import (
	_ "github.com/google/go-containerregistry/cmd/crane"
)

//go:build tools

// Package parts pins the containerlab that the cluster lab is deployed with.
package parts

import _ "github.com/srl-labs/containerlab"

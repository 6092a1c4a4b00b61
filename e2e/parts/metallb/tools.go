//go:build tools

// Package parts pins the MetalLB whose controller the allocator is measured beside.
package parts

import _ "go.universe.tf/metallb/controller"

//go:build tools

// Package parts pins the helm that renders and lints the chart.
package parts

import _ "helm.sh/helm/v3/cmd/helm"

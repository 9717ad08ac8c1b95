// The CRDs of ServiceMonitor and PrometheusRule, which the chart may bring objects of; nothing of it is built.
module trainwright.dev/tests/cluster/tools/prometheus-operator

go 1.24.0

require github.com/prometheus-operator/prometheus-operator v0.86.1

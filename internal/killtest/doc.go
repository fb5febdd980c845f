// Package killtest kills the plugin at every point of its work, one run each,
// and looks whether anything is left, leaked or given twice when it has been
// started again. It plays dockerd and containers in network namespaces, so that
// a run takes a second and needs no Docker. Its tests are built with the tag
// faults, of which the points are a part.
package killtest

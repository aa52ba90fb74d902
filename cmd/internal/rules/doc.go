// Package rules holds the tree to what ARCHITECTURE.md says of it: who may
// import whom, which packages are pure, that each row of SUPPORT.md names a test
// that there is, and where unsafe, skips and long files may be. It has tests only.
package rules

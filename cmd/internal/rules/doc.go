// Package rules holds the tree to what ARCHITECTURE.md says of it: who may
// import whom, which packages are pure, and that each row of SUPPORT.md names
// a test that there is. It has tests only.
package rules

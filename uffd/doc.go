// Package uffd is userfaultfd(2): memory whose page faults are handled by a
// program.
package uffd

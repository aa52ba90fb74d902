// Package verb is what all verbs of the command have in common, whether
// lazyrestore has them itself or they are executables lazyrestore-VERB beside
// it: the flags that each has, how its arguments are read and completed, and how its
// errors become messages, JSON and exit codes.
package verb

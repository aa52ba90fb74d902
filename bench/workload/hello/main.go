// Command hello prints a line: the least that a Go program does, to compare
// the start-up of others with.
package main

import "fmt"

func main() { fmt.Println("hello") }

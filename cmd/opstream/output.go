package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// outputFlag is --output: a table for people, or JSON for programs.
type outputFlag string

func (o *outputFlag) add(c *cobra.Command) {
	*o = "table"
	c.Flags().VarP(o, "output", "o", `"table" for people, "json" for programs`)
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

func (o *outputFlag) json() bool { return *o == "json" }

// String, Set and Type make it a flag's value.
func (o *outputFlag) String() string { return string(*o) }

// Set refuses anything but the two formats.
func (o *outputFlag) Set(s string) error {
	if s != "table" && s != "json" {
		return fmt.Errorf("expected table or json, but got %q", s)
	}
	*o = outputFlag(s)
	return nil
}

// Type is what help shows.
func (o *outputFlag) Type() string { return "format" }

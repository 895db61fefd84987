package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// envDatabase is where the tables are unless --database says it. A URL may hold a password, which is nobody's business who
// lists processes.
const envDatabase = envPrefix + "DATABASE"

// databaseFlag is --database of a command that takes no other options of the table from the environment. The environment is not
// its default: --help would show it.
func databaseFlag(c *cobra.Command, to *string, what string) {
	c.Flags().StringVar(to, "database", "", what+" (environment: "+envDatabase+")")
}

func databaseFromEnvironment(c *cobra.Command, to *string) error {
	if c.Flags().Changed("database") {
		if err := checkAddress(*to); err != nil {
			return &exitError{exitUsage, fmt.Errorf("--database: %w", err)}
		}
		return nil
	}
	var err error
	if *to, err = address(os.Getenv(envDatabase)); err != nil {
		return &exitError{exitUsage, fmt.Errorf("%s: %w", envDatabase, err)}
	}
	return nil
}

package lint

// A Rule is one promise about the source.
type Rule struct {
	Name  string
	Check func(*Tree) []Finding
}

// Rules returns all rules.
func Rules() []Rule {
	return []Rule{
		{"syntax", func(t *Tree) []Finding { return t.Broken }},
		{"imports", Imports},
		{"purity", Purity},
		{"calls", Calls},
		{"comments", Comments},
		{"words", Words},
		{"names", Names},
	}
}

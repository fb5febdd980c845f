package doctor

import (
	"fmt"
	"io"

	"underlay/internal/oneline"
)

// Level is how bad a finding is.
type Level string

// The levels. Only errors make the exit status 1.
const (
	Error   Level = "error"   // networks or containers there do not work
	Warning Level = "warning" // something of them does not, or will not
	Note    Level = "note"    // worth knowing, or not to be found out
)

// Finding is what a check says.
type Finding struct {
	Level   Level  `json:"level"`
	Check   string `json:"check"`
	Subject string `json:"subject"`
	Fact    string `json:"fact"`
	Remedy  string `json:"remedy"`
	See     string `json:"see"`
}

// Manual is the page where each check has a part of its name.
const Manual = "docs/doctor.md"

// Write prints findings for a person.
func Write(w io.Writer, found []Finding) error {
	if len(found) == 0 {
		_, err := fmt.Fprintln(w, "all well")
		return err
	}
	for _, f := range found {
		if _, err := fmt.Fprintf(w, "%s: %s: %s\n  do: %s\n  see: %s\n", f.Level, oneline.Of(f.Subject), oneline.Of(f.Fact), oneline.Of(f.Remedy), f.See); err != nil {
			return err
		}
	}
	return nil
}

// Failed tells whether one is an error.
func Failed(found []Finding) bool {
	for _, f := range found {
		if f.Level == Error {
			return true
		}
	}
	return false
}

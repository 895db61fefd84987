package schemas

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-playground/validator/v10"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/optype"
	"github.com/opstream/opstream/domain/retry"
)

// The rules for the fields of a request and of a command, by Go name; the domain has no tags. Types, instants, names of
// policies and whole numbers are judged while they are read.
var (
	requestRules = map[string]string{
		"ID":              "required,bytes=128,clean",
		"Organization":    "required,bytes=128,clean",
		"Type":            "required,typename",
		"Name":            "omitempty,bytes=256,clean",
		"DependencyToken": "omitempty,bytes=256,clean",
		"ExplicitKey":     "omitempty,bytes=256,clean",
		"TimeLimit":       "omitempty,between=1ms 87600h",
		"Retry":           "omitempty",
		"Context":         "omitempty",
	}
	policyRules = map[string]string{
		"Initial":     "between=0s 87600h",
		"Max":         "between=0s 87600h",
		"Multiplier":  "gte=1,lte=1000",
		"Jitter":      "gte=0,lte=1",
		"GiveUpAfter": "between=0s 87600h",
	}
	contextRules = map[string]string{
		"CorrelationID":     "omitempty,bytes=256,clean",
		"RequestID":         "omitempty,bytes=256,clean",
		"MessageName":       "omitempty,bytes=256,clean",
		"PrimaryEntityType": "omitempty,bytes=256,clean",
		"RegardingType":     "omitempty,bytes=256,clean",
		"RegardingID":       "omitempty,bytes=256,clean",
		"RegardingName":     "omitempty,bytes=256,clean",
		"OwnerID":           "omitempty,bytes=256,clean",
		"CallerOrigin":      "omitempty,bytes=256,clean",
		"CreatedBy":         "omitempty,bytes=256,clean",
	}
	commandRules = map[string]string{
		"ID":        "required,bytes=128,clean",
		"Org":       "required,bytes=128,clean",
		"CommandID": "required,bytes=128,clean",
	}
	byRules = map[string]string{
		"Who":    "omitempty,bytes=256,clean",
		"Reason": "omitempty,bytes=2000,prose",
	}

	jsonNames = map[string]string{
		"Request.ID": "id", "Request.Organization": "organization", "Request.Type": "type", "Request.Name": "name",
		"Request.DependencyToken": "dependencyToken", "Request.ExplicitKey": "partitionKey", "Request.TimeLimit": "timeLimit",
		"Request.Retry.Initial": "retry.initial", "Request.Retry.Max": "retry.max", "Request.Retry.Multiplier": "retry.multiplier",
		"Request.Retry.Jitter": "retry.jitter", "Request.Retry.GiveUpAfter": "retry.giveUpAfter",
		"Request.Context.CorrelationID": "correlationId", "Request.Context.RequestID": "requestId",
		"Request.Context.MessageName": "messageName", "Request.Context.PrimaryEntityType": "primaryEntityType",
		"Request.Context.RegardingType": "regarding.type", "Request.Context.RegardingID": "regarding.id",
		"Request.Context.RegardingName": "regarding.name", "Request.Context.OwnerID": "ownerId",
		"Request.Context.CallerOrigin": "callerOrigin", "Request.Context.CreatedBy": "createdBy",
		"Command.ID": "id", "Command.Org": "organization", "Command.CommandID": "ce_id",
		"Command.By.Who": "by.who", "Command.By.Reason": "by.reason",
	}
)

// rules is the one validator: it caches what it learns of the types.
var rules = func() *validator.Validate {
	v := validator.New(validator.WithRequiredStructEnabled())
	register := func(tag string, fn validator.Func) {
		if err := v.RegisterValidation(tag, fn); err != nil {
			// invariant: the names above are no reserved ones.
			panic(err)
		}
	}
	register("bytes", func(f validator.FieldLevel) bool {
		limit, err := strconv.Atoi(f.Param())
		return err == nil && f.Field().Len() <= limit
	})
	register("clean", func(f validator.FieldLevel) bool { return clean(f.Field().String()) })
	register("prose", func(f validator.FieldLevel) bool { return clean(lineEnds.Replace(f.Field().String())) })
	register("typename", func(f validator.FieldLevel) bool { return optype.ValidName(f.Field().String()) })
	register("between", func(f validator.FieldLevel) bool {
		low, high := bounds(f.Param())
		d := time.Duration(f.Field().Int())
		return d >= low && d <= high
	})
	v.RegisterStructValidationMapRules(requestRules, operation.Request{})
	v.RegisterStructValidationMapRules(policyRules, retry.Policy{})
	v.RegisterStructValidationMapRules(contextRules, operation.Context{})
	v.RegisterStructValidationMapRules(commandRules, operation.Command{})
	v.RegisterStructValidationMapRules(byRules, operation.By{})
	return v
}()

// bounds knows the two parameters of between; parsing them each time would cost more than the check.
func bounds(param string) (low, high time.Duration) {
	if param == "1ms 87600h" {
		low = time.Millisecond
	}
	return low, MaxDuration
}

// clean says whether s is UTF-8 without control characters (Cc) and format characters (Cf), the marks that turn the
// direction of writing among them: such text does not show what it is.
func clean(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= utf8.RuneSelf {
			return cleanWide(s[i:])
		}
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

func cleanWide(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if unicode.In(r, unicode.Cc, unicode.Cf) {
			return false
		}
	}
	return true
}

// lineEnds are what prose, which a person writes, may hold beside what clean allows.
var lineEnds = strings.NewReplacer("\n", "", "\r", "", "\t", "")

func validateRequest(q *operation.Request) *Refusal { return refusalOf(rules.Struct(q)) }

func validateCommand(c *operation.Command) *Refusal { return refusalOf(rules.Struct(c)) }

// refusalOf turns the first of the validator's findings into a refusal.
func refusalOf(err error) *Refusal {
	var found validator.ValidationErrors
	if err == nil {
		return nil
	}
	if !errors.As(err, &found) || len(found) == 0 {
		return &Refusal{Code: InvalidRequest, Reason: err.Error()}
	}
	f := found[0]
	field := jsonNames[f.StructNamespace()]
	if field == "" {
		field = f.StructNamespace()
	}
	value := f.Value()
	if d, ok := value.(time.Duration); ok {
		value = d.String()
	}
	switch f.Tag() {
	case "required":
		return &Refusal{Code: Required, Field: field, Reason: "expected a value, but it is missing or empty"}
	case "bytes":
		return &Refusal{Code: TooLong, Field: field, Reason: fmt.Sprintf("expected at most %s bytes, but got %d", f.Param(), reflect.ValueOf(value).Len())}
	case "clean", "prose":
		return &Refusal{Code: InvalidCharacters, Field: field, Reason: fmt.Sprintf("expected text without control and format characters, but got %+.64q", value)}
	case "typename":
		return &Refusal{Code: InvalidName, Field: field, Reason: fmt.Sprintf("expected lower-case words and numbers joined by hyphens or dots, at most %d bytes, but got %.64q", optype.MaxName, value)}
	case "between":
		low, high := bounds(f.Param())
		return &Refusal{Code: OutOfRange, Field: field, Reason: fmt.Sprintf("expected a duration from %s to %s, but got %v", low, high, value)}
	case "gte", "lte":
		word := map[string]string{"gte": "at least", "lte": "at most"}[f.Tag()]
		return &Refusal{Code: OutOfRange, Field: field, Reason: fmt.Sprintf("expected %s %s, but got %v", word, f.Param(), value)}
	}
	return &Refusal{Code: InvalidRequest, Field: field, Reason: "expected " + f.Tag() + " to hold"}
}

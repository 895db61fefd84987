package schemas

// headerLater and memberLater are what a newer version might add.
const (
	headerLater = "ce_later"
	memberLater = `"later":{"of":["a newer version",1]}`
)

// fromLater adds them to a record whose value is an object.
func (c *carrier) fromLater() {
	value := make([]byte, 0, len(c.Value)+len(memberLater)+1)
	value = append(value, c.Value[:len(c.Value)-1]...)
	if len(value) > 1 {
		value = append(value, ',')
	}
	c.Value = append(append(value, memberLater...), '}')
	c.header(headerLater, []byte("1"))
}

package operation

// CommandKinds is the number of kinds of command.
const CommandKinds = commands

package doors

// Convert is the way from a specification to the runtime's configuration.
var Convert = convert

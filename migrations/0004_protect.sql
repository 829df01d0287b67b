-- A table of your own becomes a protected resource.
SET LOCAL ROLE palisade_owner;

RESET ROLE;

// Package store keeps the plugin's records in one bbolt file.
//
// A record is on disk before Docker gets its answer, and a disk sync is the
// dearest part of a call. So callers submit their changes and wait, and one
// writer commits everything that has gathered since its last commit as one
// transaction: a lone caller pays one sync, a crowd shares it.
//
// bbolt maps the file into memory and trusts it. So all of it is checked first,
// and what is damaged is set aside, whole, and another file begun: a plugin that
// does not start keeps dockerd from its containers.
package store

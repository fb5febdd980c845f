// Package uitest holds the tests of the page of package ui in a real Chromium (build
// tag browser), before a plugin on the fake kernel.
package uitest

// Package ui is a page to look at: which address of which subnet is whose, now.
//
// It only shows. It answers GETs, knows the plugin by the three questions of Source,
// and asks them only while somebody looks: at rest nothing wakes up for it.
//
// The page comes whole from here, from the folder page, without a framework and
// without a byte from elsewhere.
package ui

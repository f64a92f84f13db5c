package sigv4

import (
	"regexp"
	"strings"
)

// regionForm has no dots and no slashes: a region becomes part of a host name
// and of what is signed.
var regionForm = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]{2,12}){1,3}-[0-9]{1,2}$`)

// IsRegion tells whether s has the form of an AWS region such as eu-west-1, safe
// to be put into a host name.
func IsRegion(s string) bool { return regionForm.MatchString(s) }

// DNSSuffix is the domain of the partition a region belongs to.
// Source: AWS SDK for Go v2, internal/endpoints/awsrulesfn/partitions.json at v1.48.0.
func DNSSuffix(region string) string {
	for _, partition := range [...][2]string{
		{"cn-", "amazonaws.com.cn"},
		{"eusc-", "amazonaws.eu"},
		{"us-iso-", "c2s.ic.gov"},
		{"us-isob-", "sc2s.sgov.gov"},
		{"us-isof-", "csp.hci.ic.gov"},
		{"eu-isoe-", "cloud.adc-e.uk"},
	} {
		if strings.HasPrefix(region, partition[0]) {
			return partition[1]
		}
	}
	return "amazonaws.com"
}
